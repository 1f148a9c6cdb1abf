"""How much a user, a request and a server may have. Each limit is a setting (settings.py).

What RATE_LIMIT_REQUESTS limits are runs, which users are told of as messages, and what costs as much.

calls.py      how many calls a user may make, reserved in blocks, so that few of them ask the database
allowance.py  the one statement behind it. Of runs it is a part of the statement that starts one (runs/statements.py)
refusals.py   what those are told who want too much
sizes.py      how large the parts of a request may be
deadline.py   how long a call may take
at_once.py    how many streams a user has open, and how many starts that wait
overload.py   when a server starts nothing new
"""
