mod partition;
