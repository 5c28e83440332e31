"""The inference endpoint of a box: Open Inference Protocol v2 over HTTP, in a supervised child process.

::

    worker    the supervisor half: listening socket, child process, restarts   (light: no web framework, no runtime)
    process   the child as the supervisor sees it: started, asked, listened to, ended
    control   what the two halves say to each other
    child     the inference process: control loop and HTTP server
    app       HTTP routes            hosts    which Host and Origin headers are welcome       openapi  the API in words
    dataplane request -> feeds -> session -> answer; load, swap, release
    models    which version answers: a table without I/O          lanes    one thread per open session
    codecs    bodies <-> named arrays (JSON and binary)           tensors  one array <-> JSON or bytes
    example   a request that works, and the `curl` line for it    cli      `edgert serve`
"""
