"""SRA-CL for lightrec: contrastive learning whose positives are retrieved by text."""
