"""Data that ship with the package; ``README.md`` says where each file is from."""
