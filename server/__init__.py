"""The server: verifies contributions, inverts them, meta-learns; it never sees an image."""
