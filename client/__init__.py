"""The organisation's side: trains on private images, contributes once, adapts what comes back."""
