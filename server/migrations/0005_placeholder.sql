-- Holds a number, since there must be no gaps.
select 1;
