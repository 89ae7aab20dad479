"""The revisions, one file each. A ledger only ever grows, so they lead forward only."""
