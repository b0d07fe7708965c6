"""What every room needs: argument checks, errors, this process among ranks, numbers as text."""
