"""What the papers leave open, measured: blocks of stage verify with a control and an interval over seeds each."""
