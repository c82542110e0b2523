"""XNNPACK's operators, which it lists by name and order alone, and the nodes that they came from."""

from acmix.targets.formats.xnnpack_events import GraphNode, align


def nodes(*kinds: str) -> list[GraphNode]:
    """Nodes that become one operator each."""
    return [GraphNode(kind) for kind in kinds]


def test_fused_activations_are_skipped_and_added_transposes_are_nobodys() -> None:
    events = ["Transpose (ND, X32)", "Convolution (NHWC, F32) IGEMM", "Fully Connected (NC, F32) GEMM", "Add (ND)"]
    assert align(events, nodes("XNNConv2d", "XNNClamp", "XNNFullyConnected", "XNNAdd")) == [None, 0, 2, 3]


def test_an_operator_that_may_have_come_from_two_nodes_is_given_to_neither() -> None:
    assert align(["Multiply (ND)"], nodes("MUL", "MUL")) == [None]


def test_the_copies_of_a_concatenation_are_one_node() -> None:
    concatenation = GraphNode("CONCATENATION", 2)
    assert align(["Copy (NC, X32)", "Copy (NC, X32)", "Add (ND)"], [concatenation, *nodes("ADD")]) == [0, 0, 1]
