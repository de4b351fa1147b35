"""UniRec for lightrec: sequence uniformity, item frequency and time in several dimensions."""
