"""Running a variant: one short file a backend, and the choice between them."""
