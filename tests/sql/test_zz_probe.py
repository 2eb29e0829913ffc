import sys; sys.path.insert(0,'tests/sql'); sys.path.insert(0,'tests')
import test_plans as t
from test_plans import *
def test_probe(peer, request):
    print()
    print(request.node.name)
    for _ in range(3):
        print(' claim', peer.explain(peer.claim_statement()).buffers, 'multi', peer.explain(peer.claim_statement(10, queues=[f"q{n}" for n in range(20)])).buffers, 'due', peer.explain(peer.next_due_statement()).buffers)
    for n in (1,1,1000,5000,1000):
        for keyed in (0,1):
            specs=[JobSpec.make("t", queue="bulk", unique_key=f"new{n}-{i}" if keyed else None) for i in range(n)]
            p=peer.explain(statements.enqueue_many(specs, schema=SCHEMA)); print(' many', n, keyed, p.buffers, p.buffers/n, p.root['Actual Total Time'])
    for i in range(3):
        print(' enq', peer.explain(statements.enqueue(JobSpec.make("t"), schema=SCHEMA)).buffers, peer.explain(statements.enqueue(JobSpec.make("t",unique_key=f'z{i}'), schema=SCHEMA)).buffers, peer.explain(statements.enqueue(JobSpec.make("t",unique_key=f'z{i}'), schema=SCHEMA)).buffers)
    for i in range(4):
        j=peer.enqueue()
        print(' verbs', [peer.explain(v(j, schema=SCHEMA)).buffers for v in (statements.cancel, statements.retry, statements.cancel)])
@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'fresh' if case[1] else 'stale'}")
def client(request, filled):
    with Explainer(filled(*request.param)) as explainer:
        explainer.sql("RESET ALL")
        explainer.begin()
        yield explainer
        explainer.rollback()
def test_probe(client, request):
    peer=client
    print()
    print(request.node.name)
    for n in (1,1,1000,5000,1000):
        for keyed in (0,1):
            specs=[JobSpec.make("t", queue="bulk", unique_key=f"new{n}-{i}" if keyed else None) for i in range(n)]
            p=peer.explain(statements.enqueue_many(specs, schema=SCHEMA)); print(' many', n, keyed, p.buffers, p.buffers/n, p.root['Actual Total Time'])
