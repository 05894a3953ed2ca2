"""Two doors to one house, Flower and gRPC: who may come in, what arrives, what is handed out."""
