"""The design that this one replaces, v2.0, written for the same server, client and fleet, and measured beside it.

Sections named here are those of the document that decided to replace it; docs/BASELINE.md quotes what they say.
"""
