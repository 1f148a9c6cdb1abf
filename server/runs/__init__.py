"""Runs: answers that are made in tasks of their own, logged, watched, resumed, stopped, and kept (docs/runs.md).

run.py             one run: its task, its numbered events, what it keeps of them in memory
runs.py            all runs of this server: begun, stopped, drained, seen through to their end
starting.py        how a run gets the lease of its thread: one at a time, and one for a request
watching.py        streams of what runs say, from memory or from the log
thread_watch.py    streams of what happens on threads
in_progress.py     what GetThread and ListItems show of an answer that is being made
log_writer.py      the log, written behind all runs in one statement
tail.py            the log, read for all watchers in one statement
wakeups.py         NOTIFY from other servers
membership.py      the heartbeat, by which leases are held
recovery.py        ending the runs of servers that died
partial_answer.py  what is kept of an answer that was not finished (pending_items.py)
replay.py          what a repeated request gets when the log is gone
store.py           the rows of all that (statements.py)
lease.py, batches.py  what a run writes under, and what a watcher gets
"""
