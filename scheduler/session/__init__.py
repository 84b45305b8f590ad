"""The session domain: who owns a session, and what it is bound to."""
