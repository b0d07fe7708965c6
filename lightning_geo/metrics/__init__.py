"""Everything that can be measured: specs, the catalog, selection and the registry of metric functions."""
