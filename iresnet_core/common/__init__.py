"""What every folder uses: argument checks, precision, samples of a batch, copies of immutable objects."""
