"""An archive that takes answers by C-STORE."""

import contextlib

from pynetdicom import AE, evt

from pipeline.archive.sender import STORAGE_CLASSES

GONE = -1


@contextlib.contextmanager
def archive(statuses=(), title="PACS", classes=STORAGE_CLASSES):
    """Run an archive that answers with these statuses, then with success; yield its port and what it stored.

    The status ``GONE`` ends the connection instead of an answer. Only ``classes`` are accepted.
    """
    answers, taken = iter(statuses), []

    def store(event):
        status = next(answers, 0)
        if status == GONE:
            event.assoc.abort()
        if status == 0:
            taken.append(str(event.request.AffectedSOPInstanceUID))
        return status

    entity = AE(ae_title=title)
    entity.require_called_aet = True
    for one in classes:
        entity.add_supported_context(one)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], taken
    finally:
        entity.shutdown()
