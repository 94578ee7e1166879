"""All that touches weights: loading, completers, teacher signals, divergences."""
