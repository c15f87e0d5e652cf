SELECT sum(number) AS total FROM numbers(1000)
