"""Image files as both sides read them: an organisation's own, and public ones that a coordinator names."""
