"""A client of Torrelque over gRPC, which does not import the library: copy it and begin here."""
