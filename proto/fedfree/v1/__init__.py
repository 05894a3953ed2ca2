"""Generated wire schema, version 1; `make proto` regenerates it from the .proto files beside it."""
