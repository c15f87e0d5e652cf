COPY market_ticks ({columns}) FROM STDIN (FORMAT BINARY)
