"""The MAISI module's panel and logic, in small classes that get their collaborators handed in."""
