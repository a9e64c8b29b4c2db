"""Studies that no user needs: training of the embedded model, redundancy, findings of the pages."""
