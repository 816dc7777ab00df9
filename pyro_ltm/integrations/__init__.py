"""Bridges to other projects' tools. Each is an extra: imported by its own name, and needed by nothing else here."""
