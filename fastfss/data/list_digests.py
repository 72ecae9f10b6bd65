"""What is known of the published lists: their lengths and digests, not their lines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedList:
    """A published list.

    Attributes:
        lines: how many it has.
        sorted: sha256 over its lines, sorted bytewise, each followed by a newline.
        ordered: the same over the lines as they stand; "" where order does not matter.
    """

    lines: int
    sorted: str
    ordered: str = ""


# For hsnet/coco a line is "<class 00..79> <name>", classes ascending; else it is the file's own.
PUBLISHED_LISTS = {
    "hsnet/pascal/trn/fold0": PublishedList(
        2286,
        "59403eff71fd4457978361dba0713fbf96b2da0fdd48a41bbfc688c7f220cf17",
        "40fded8be6afbc4b70953277f2a178af8055cddd4e73fb4646b7bf19704b9da2",
    ),
    "hsnet/pascal/trn/fold1": PublishedList(
        3425,
        "6cc5ee4349a68aa68ea0dd99e7545a49ba43a5d355ebf70653a37385799ca677",
        "558167c3c6fea0cda1bb7c7a275e66d5de7bc13cbc97e00c5872ac84d5f0954e",
    ),
    "hsnet/pascal/trn/fold2": PublishedList(
        5883,
        "dd87152f9077a031d2078c7a40928d5c5db42d128e0ffe32acd07b34ce258d4a",
        "d07e35f4a4ae95774c619bafb57d65d682dbd5b9f33c7f71a4f5cef8e3f99609",
    ),
    "hsnet/pascal/trn/fold3": PublishedList(
        2086,
        "c34b93f107408bed02af636416057ac09a87c770dda2d77d45dcb08f289265ff",
        "ffe09100c0c4d9c19d074a33b0f29fe5a89a730579ba39a9f9e908186298ac17",
    ),
    "hsnet/pascal/val/fold0": PublishedList(
        346,
        "748e2f4732ac502cb3aa1f3768936b394bd7ba4e611ac5bf959291a268e249df",
        "748e2f4732ac502cb3aa1f3768936b394bd7ba4e611ac5bf959291a268e249df",
    ),
    "hsnet/pascal/val/fold1": PublishedList(
        451,
        "afce1929e4dacbc13c07f9a26d4ce7738d415e1b18443fe173e58303836f5c14",
        "afce1929e4dacbc13c07f9a26d4ce7738d415e1b18443fe173e58303836f5c14",
    ),
    "hsnet/pascal/val/fold2": PublishedList(
        725,
        "50b1f5218e8f882ca65d85da5be230b978a70067e9b3e0e9fca1528f546bd7fb",
        "50b1f5218e8f882ca65d85da5be230b978a70067e9b3e0e9fca1528f546bd7fb",
    ),
    "hsnet/pascal/val/fold3": PublishedList(
        346,
        "c3825d7c52d1608d4c62c5b85d6ef3f74cf5898032bc068a94c971df17bdf71a",
        "c3825d7c52d1608d4c62c5b85d6ef3f74cf5898032bc068a94c971df17bdf71a",
    ),
    "hsnet/coco/trn/fold0": PublishedList(
        95476,
        "389cd90f823bc5c025a71c4edec72e48b12d830fa3befb8bb870e26b5abd06be",
        "b5cde3b4ab033fcfbd1180b1254ecd8ca65c47c53a2218329e3a3e4aa07b7f2d",
    ),
    "hsnet/coco/trn/fold1": PublishedList(
        133927,
        "ca14e23a35a06aee74ddaa7ce7da70bad0db8ad208aeeea2311bec1ce42a7fdc",
        "d115e1baf4bc9362eb93e2f503776e2d4c474f51a73933179a0e2c50c6acf6e9",
    ),
    "hsnet/coco/trn/fold2": PublishedList(
        141054,
        "b6c9eb61a2c3e853dfb1e1b836a06182b81c68e7f92d354493f42b834d29d0a6",
        "a8453a6c7a88e9f1fe2d7893ae67fb353e4f340e08d141672634c7bf0dcb5814",
    ),
    "hsnet/coco/trn/fold3": PublishedList(
        141016,
        "fe3c8d4bd3d318f3ca2959518f04b816931ca0aa0d0864e088a7de018cc0c06f",
        "2f7b18bd4a16e13af978bef235de06582f4d333a6ed464ffc41b93972c5302cf",
    ),
    "hsnet/coco/val/fold0": PublishedList(
        35783,
        "e3edbcc56e50e36de2599fe4dc07ce9bf320dbb7d32c3b69f30aaafd3dbdf225",
        "e251b1aa3e683dd827466dfd06723c1fcddc2806cbec98be8ecc8cf44e68ff0a",
    ),
    "hsnet/coco/val/fold1": PublishedList(
        17912,
        "44d2732d957cbb641f9f21e4010e64de9ad3f148184d64d8cc4f7a0fbb349c86",
        "540235714bfcdb1eb0800bce358f5c6e2a358c275120fb847ec9f5f581e94d22",
    ),
    "hsnet/coco/val/fold2": PublishedList(
        14563,
        "1a9e0f7af53650b741ca55412a6b75df9bd01402bc32a3a7960b984390ac3212",
        "94bc1dbf37aee99a2a21cb592703913ced91f15c11b73cf6ba1a5f0758cce6ca",
    ),
    "hsnet/coco/val/fold3": PublishedList(
        14315,
        "61aa4adf912e889c136e09561eeabbbeaee62f7363a595bca665f51cfbb86dc1",
        "1b0d5a51164d46010cffd9417ca11ebe0c22140b1bca5adb3c92d59bc9ee78b4",
    ),
    "hsnet/fss/trn": PublishedList(
        520,
        "4e236fa8eda2543a988f734f8ea728a6f321bb426ec79cc121c5f4f115f41f10",
    ),
    "hsnet/fss/val": PublishedList(
        240,
        "bae6fbf5aa020ce4e589b76c51da21cc9b77970877579612e0a0d3c4b43688b0",
    ),
    "hsnet/fss/test": PublishedList(
        240,
        "0efbe526c0dd445b580de07cae179df51fffc91255599e96b13d8b16e7e04c0c",
    ),
    "pfenet/val": PublishedList(
        1449,
        "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d",
    ),
    "pfenet/voc_original_train": PublishedList(
        1464,
        "aa623bd2c8ce4443a8aaae51c524c0eb165e8e44caf6aa9e3ad33d7b75a3ef20",
    ),
    "pfenet/sbd_data": PublishedList(
        5623,
        "0b2068f7a359d2907431803e1cd63bf6162da37d7d503b589d3b08c6fd0c2432",
    ),
    "pfenet/voc_sbd_merge_noduplicate": PublishedList(
        5953,
        "a9bc0a1466deee7a9d4923ae677ec6098f090110a60cb769052a4abad586746c",
    ),
}

# Images that HSNet lists for each class, ascending: (data set, part) -> counts.
IMAGES_PER_CLASS = {
    key: tuple(map(int, counts.split()))
    for key, counts in {
        ("pascal", "trn"): """
            528 428 583 371 376 367 848 987 988 235 504 1122 430 440 3387 358 277 487 488 476
        """,
        ("pascal", "val"): """
            80 57 86 58 65 69 96 115 102 69 74 125 76 72 378 58 49 90 82 67
        """,
        ("coco", "trn"): """
            40118 1524 5651 2115 2047 2498 2427 3327 1599 1248 862 805 325 2724 1393 2437 2424
            1904 1005 1288 1491 655 1297 1770 1698 2186 2104 324 1356 527 949 628 309 920 459
            377 1492 1445 1425 2813 1120 3642 865 1031 641 3229 1276 785 1167 826 1031 809 630
            1817 821 1697 7449 2980 2321 2514 7894 2211 2872 2126 397 597 1184 734 863 1875 88
            2306 1626 2419 1354 1399 369 1337 53 190
        """,
        ("coco", "val"): """
            19217 748 2754 1073 727 1213 1257 1565 816 572 411 385 172 1379 713 1291 1203 925
            456 616 699 335 655 839 805 1135 998 154 709 270 434 272 142 404 173 159 655 804 687
            1351 516 1733 419 470 312 1577 551 298 577 380 521 397 331 916 423 790 3648 1375
            1198 1272 3722 1116 1416 1070 200 302 619 446 389 925 38 1097 773 1159 803 676 170
            644 37 94
        """,
    }.items()
}
