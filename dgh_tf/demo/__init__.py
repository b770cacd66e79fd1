"""Three small trained models that ship with the package, their data, and how they were trained."""
