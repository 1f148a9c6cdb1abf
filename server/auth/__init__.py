"""Who calls, and whether he may: one interceptor before all RPCs, and nothing that says so a second time.

interceptor.py    asks before every call; what it doesn't let through reaches no service
access.py         what the schema says of each RPC: who may call it, and what for
authenticator.py  from a call's metadata to its caller: a token, a session's cookie, or development's user
acting.py         a service that acts for a user
tokens.py         JWTs: what one must be, and by which key it is checked
jwks.py           the issuer's public keys, fetched and kept
sessions.py       Better Auth's session cookies
certificates.py   services that are known by their certificates
settings.py       all of this that an operator sets
"""
