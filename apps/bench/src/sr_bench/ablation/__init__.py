"""Tables of the papers in miniature: train their rows over several seeds at equal cost, and measure them alike."""
