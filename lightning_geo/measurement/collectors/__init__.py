"""Sources of data, one a file: what each observes, its sums, and how its metrics follow from them."""
