"""An object store in this process: a bucket that speaks S3."""

import pytest


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """s3://bucket, of a server of this process; the cache of the module is a temporary folder."""
    from moto.server import ThreadedMotoServer

    from essl_fast.data.remote import Store

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anna",
        "AWS_SECRET_ACCESS_KEY": "opensesame",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # one of another server
        system = Store("s3://bucket/x")._system
        if not system.exists("bucket"):  # the server's objects are the process's
            system.mkdir("bucket")
        yield "s3://bucket"
    server.stop()
