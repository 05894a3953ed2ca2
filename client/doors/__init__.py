"""The coordinator's two doors from the organisation's side: Flower's app and node, and the gRPC calls."""
