"""Reports: tables, figures and HTML pages made from turns and findings."""
