"""Artifacts in object stores."""

# by which moto tells what service is asked
KEY = "AWS4-HMAC-SHA256 Credential=of-the-test/20260101/us-east-1/s3/aws4_request"
