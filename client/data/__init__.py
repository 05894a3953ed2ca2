"""The organisation's private images: found, checked and decoded here, and nowhere sent."""
