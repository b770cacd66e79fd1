"""The page a person looks at after a run."""
