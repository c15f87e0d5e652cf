"""`python -m market_pipeline.cli`."""

from market_pipeline.cli import main

if __name__ == "__main__":
    main()
