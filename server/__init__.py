"""The server: verifies contributions, inverts them, meta-learns; it never sees a private image."""
