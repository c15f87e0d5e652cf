SELECT symbol, epoch FROM tick_epochs WHERE epoch >= 0 ORDER BY symbol
