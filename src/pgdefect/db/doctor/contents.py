"""What the rows say: vectors, thresholds, networks, and rows that nothing leads to."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, text

from pgdefect.core.detector_kinds import KINDS
from pgdefect.core.distance import COSINE, metric_named
from pgdefect.core.wording import command
from pgdefect.db.doctor.findings import Finding, fix_command, psql, size
from pgdefect.db.schema.partitions import SEARCHED, leaves

BIG = 256 << 20
"""Bytes of a table that is read through only when asked to be thorough."""


def check_vectors(connection: Connection, *, thorough: bool = False) -> Iterator[Finding]:
    """Vectors that no index holds, and banks with fewer or more of them than they say."""
    banks = {
        row[0]: (row[1], row[2], row[3])
        for row in connection.execute(
            text(
                "SELECT b.id, b.metric, b.num_vectors, c.name FROM pgdefect.memory_bank b "
                "JOIN pgdefect.detector d ON d.id = b.id "
                "JOIN pgdefect.category c ON c.id = d.category_id"
            )
        )
    }
    for leaf in leaves(connection):
        if leaf.vector is None or not leaf.owned or not leaf.attached:
            continue
        subject = f"pgdefect.{leaf.table}"
        if leaf.bytes > BIG and not thorough:
            yield Finding(
                "note",
                "vectors-not-read",
                subject,
                f"its {size(leaf.bytes)} were not read through",
                command("doctor", thorough=True),
            )
            continue
        norm = "vector_norm" if leaf.vector_type == "vector" else "l2_norm"
        count, nulls, zeros = connection.execute(
            text(
                f"SELECT count(*), count(*) FILTER (WHERE {leaf.vector} IS NULL), "
                f"count(*) FILTER (WHERE {norm}({leaf.vector}) = 0) FROM {subject}"
            )
        ).one()
        metric, promised, category = banks.get(leaf.number, (COSINE.name, None, None))
        if leaf.key != "bank_id":
            metric, promised = COSINE.name, None
        again = (
            command("train", category)
            if leaf.key == "bank_id"
            else psql(f"DELETE FROM {subject} WHERE {norm}({leaf.vector}) = 0")
            + ", then pgdefect inspect"
        )
        if nulls:
            yield Finding(
                "fault",
                "null-vectors",
                subject,
                f"{nulls:,} vectors are NULL; no search finds them",
                again.replace(f"{norm}({leaf.vector}) = 0", f"{leaf.vector} IS NULL"),
            )
        if zeros and metric_named(metric).directions_only and leaf.parent in SEARCHED:
            yield Finding(
                "fault",
                "zero-vectors",
                subject,
                f"{zeros:,} vectors are zero: {metric} distance knows no direction for them, and "
                "the index does not hold them",
                again,
            )
        if leaf.parent == "memory_bank_patch" and promised is not None and count != promised:
            yield Finding(
                "fault",
                "wrong-count",
                subject,
                f"{count:,} vectors, and the bank was stored with {promised:,}",
                again,
            )


def check_lost_images(connection: Connection) -> Iterator[Finding]:
    """Banks with vectors of images that are no longer recorded (no foreign key watches)."""
    rows = connection.execute(
        text("""
        SELECT p.bank_id, count(DISTINCT p.image_id) FROM (
            SELECT DISTINCT bank_id, image_id FROM pgdefect.memory_bank_patch WHERE image_id <> 0
        ) p WHERE NOT EXISTS (SELECT FROM pgdefect.image i WHERE i.id = p.image_id)
        GROUP BY 1 ORDER BY 1""")
    )
    for bank, count in rows:
        yield Finding(
            "warning",
            "lost-images",
            f"memory bank {bank}",
            f"vectors of {count:,} images that are not recorded: it scores as before, and "
            "defect.nearest_normal cannot say where they came from",
            "pgdefect train the category again",
        )


def check_audit_trail(connection: Connection) -> Iterator[Finding]:
    """Entries that were changed or removed, and detectors that were changed past the trail."""
    for number, fault in connection.execute(text("SELECT * FROM pgdefect.audit_faults()")):
        yield Finding(
            "fault",
            "audit-trail",
            f"entry {number}" if number is not None else "detector without an entry",
            f"{fault}: somebody with the owner's rights changed it past the trail",
            "compare with the newest backup; "
            + psql("SELECT * FROM defect.audit_trail ORDER BY number"),
        )


def check_detectors(connection: Connection) -> Iterator[Finding]:
    """Detectors without what they judge by: bank, network, threshold."""
    rows = connection.execute(
        text("""
        SELECT d.id, c.name, d.kind, d.threshold, t.threshold,
               d.threshold IN ('NaN', 'Infinity'),
               EXISTS (SELECT FROM pgdefect.memory_bank b WHERE b.id = d.id),
               EXISTS (SELECT FROM pgdefect.detector_model m WHERE m.detector_id = d.id)
        FROM pgdefect.detector d
        JOIN pgdefect.category c ON c.id = d.category_id
        LEFT JOIN LATERAL (
            SELECT threshold FROM pgdefect.detector_threshold t
            WHERE t.detector_id = d.id ORDER BY t.id DESC LIMIT 1
        ) t ON true
        ORDER BY d.id""")
    )
    for number, category, kind, threshold, recorded, endless, has_bank, has_network in rows:
        subject = f"detector {number} of {category}"
        known = KINDS.get(kind)
        if known is None:
            yield Finding(
                "fault",
                "unknown-kind",
                subject,
                f"it is of the kind {kind!r}, and this version knows: {', '.join(KINDS)}",
                "use the version of pgdefect that trained it, or "
                + command("delete", detector=number, yes=True),
            )
        elif (known.has_bank and not has_bank) or (known.has_network and not has_network):
            lacking = "memory bank" if known.has_bank and not has_bank else "network"
            yield Finding(
                "fault",
                "incomplete-detector",
                subject,
                f"it has no {lacking} and can judge nothing",
                command("delete", detector=number, yes=True),
            )
        remedy = command("threshold", category, detector=number, false_reject_rate=0.05)
        if endless:
            yield Finding(
                "fault",
                "no-threshold",
                subject,
                f"its threshold is {threshold}: nothing is ever anomalous",
                remedy,
            )
        elif recorded is None:
            yield Finding(
                "fault",
                "no-threshold",
                subject,
                "no threshold is on record for it, nor the rule that made the one in use",
                remedy,
            )
        elif recorded != threshold:
            yield Finding(
                "fault",
                "threshold-differs",
                subject,
                f"{threshold:.6g} is in use and {recorded:.6g} is the newest on record: it was "
                "changed past defect.set_threshold. The remedy puts the recorded one back",
                command("threshold", category, detector=number, set=recorded),
            )


def check_outliers(connection: Connection) -> Iterator[Finding]:
    """Active detectors that were trained on images nobody has looked at that resemble no other."""
    rows = connection.execute(
        text("""
        SELECT d.id, c.name, d.threshold,
               (d.threshold_rule->>'threshold_with_outliers')::double precision,
               count(*), count(*) FILTER (WHERE o.in_bank),
               (SELECT count(*) FROM pgdefect.holdout_score h WHERE h.detector_id = d.id),
               (array_agg(o.path || ' (' || round(o.raw_score::numeric, 4) || ')'
                          ORDER BY o.raw_score DESC))[1:3]
        FROM defect.outliers o
        JOIN pgdefect.detector d ON d.id = o.detector_id
        JOIN pgdefect.category c ON c.id = d.category_id
        WHERE d.active AND c.retired_at IS NULL
        GROUP BY d.id, c.name ORDER BY d.id""")
    )
    for number, category, threshold, with_all, count, in_bank, scored, worst in rows:
        would_be = "" if with_all is None else f" and would be {with_all:.4g} with them"
        learned = f"; its bank has learned {in_bank:,} of them" if in_bank else ""
        yield Finding(
            "warning",
            "outliers",
            f"detector {number} of {category}",
            f"{count:,} of {scored:,} normal training images score far outside the rest: "
            f"{', '.join(worst)}{', …' if count > len(worst) else ''}. The threshold is "
            f"{threshold:.4g} without them{would_be}{learned}",
            f"{command('review', category, queue=True)}, and say of each what it is; or leave them "
            f"out: {command('train', category, leave_out_outliers=True)}",
        )


def check_missing_embeddings(connection: Connection) -> Iterator[Finding]:
    """Categories with images that searches cannot find, because nothing was embedded of them."""
    rows = connection.execute(
        text("""
        SELECT d.id, c.name, p.missing, p.looked_at, f.missing, f.looked_at
        FROM pgdefect.detector d
        JOIN pgdefect.category c ON c.id = d.category_id AND c.retired_at IS NULL
        LEFT JOIN pgdefect.defect_space s ON s.extractor_id = d.extractor_id
        CROSS JOIN LATERAL pgdefect.missing_embeddings('picture', d.extractor_id, c.name) p
        LEFT JOIN LATERAL pgdefect.missing_embeddings('defect', d.extractor_id, c.name) f
            ON s.extractor_id IS NOT NULL
        WHERE d.active AND EXISTS (SELECT FROM pgdefect.memory_bank b WHERE b.id = d.id)
        ORDER BY d.id""")
    )
    for number, category, pictures, looked_at, defects, anomalous in rows:
        lacking = []
        if pictures:
            lacking.append(f"{pictures:,} of {looked_at:,} images have no image embedding")
        if defects:
            lacking.append(f"{defects:,} of {anomalous:,} anomalous images no defect embedding")
        if lacking:
            yield Finding(
                "note",
                "missing-embeddings",
                f"detector {number} of {category}",
                f"{' and '.join(lacking)}; searches do not find them",
                command("embed", category),
            )


def check_learned_defects(connection: Connection) -> Iterator[Finding]:
    """Active banks with vectors of images that are known to be anomalous since."""
    rows = connection.execute(
        text("""
        SELECT d.id, c.name, count(*), (array_agg(r.path || '/' || i.path ORDER BY i.id))[1:3]
        FROM pgdefect.detector d
        JOIN pgdefect.category c ON c.id = d.category_id AND c.retired_at IS NULL
        JOIN pgdefect.image i ON i.category_id = d.category_id
                             AND i.split = 'train' AND i.known_label = 'anomalous'
        JOIN pgdefect.image_root r ON r.id = i.root_id
        WHERE d.active AND EXISTS (SELECT FROM pgdefect.memory_bank_patch p
                                   WHERE p.bank_id = d.id AND p.image_id = i.id)
        GROUP BY d.id, c.name ORDER BY d.id""")
    )
    for number, category, count, some in rows:
        yield Finding(
            "warning",
            "learned-defects",
            f"detector {number} of {category}",
            f"its bank holds vectors of {count:,} images that are known to be anomalous: "
            f"{', '.join(some)}{', …' if count > len(some) else ''}. Defects like theirs may pass "
            "as normal",
            command("train", category),
        )


def check_networks(connection: Connection) -> Iterator[Finding]:
    """Stored networks (extractors, EfficientAD) that are missing or are not what was stored."""
    rows = connection.execute(
        text("""
        SELECT 'extractor', e.id, octet_length(e.onnx), e.onnx_sha256,
               encode(sha256(e.onnx), 'hex') = e.onnx_sha256,
               ARRAY(SELECT DISTINCT c.name FROM pgdefect.detector d
                     JOIN pgdefect.category c ON c.id = d.category_id
                     WHERE d.extractor_id = e.id ORDER BY 1)
        FROM pgdefect.extractor e
        UNION ALL
        SELECT 'detector', m.detector_id, octet_length(m.onnx), m.onnx_sha256,
               encode(sha256(m.onnx), 'hex') = m.onnx_sha256, ARRAY[c.name]
        FROM pgdefect.detector_model m
        JOIN pgdefect.detector d ON d.id = m.detector_id
        JOIN pgdefect.category c ON c.id = d.category_id
        ORDER BY 1, 2""")
    )
    for kind, number, count, digest, good, categories in rows:
        if good:
            continue
        words = "is missing" if not count else f"does not match its checksum {digest[:12]}…"
        used = f"; used by {', '.join(categories)}" if categories else ""
        yield Finding(
            "fault",
            "broken-network",
            f"{kind} {number}",
            f"its network ({size(count)}) {words}{used}",
            f"{fix_command()} on a machine that has inspected with it; else pgdefect train "
            + (" ".join(categories) or "the category"),
        )


def check_unused_extractors(connection: Connection) -> Iterator[Finding]:
    """Extractors that no detector uses, with the embeddings they made."""
    used_by = connection.execute(
        text("""
        SELECT e.id, e.backbone, octet_length(e.onnx) FROM pgdefect.extractor e
        WHERE NOT EXISTS (SELECT FROM pgdefect.detector d WHERE d.extractor_id = e.id)
        ORDER BY e.id""")
    ).all()
    tables = [leaf for leaf in leaves(connection) if leaf.key == "extractor_id"]
    for number, backbone, count in used_by:
        own = [leaf for leaf in tables if leaf.number == number]
        drops = "".join(f"DROP TABLE pgdefect.{leaf.table}; " for leaf in own)
        yield Finding(
            "note",
            "unused-extractor",
            f"extractor {number}",
            f"no detector uses {backbone}; with its embeddings it takes "
            f"{size(count + sum(leaf.bytes for leaf in own))}",
            psql(f"{drops}DELETE FROM pgdefect.extractor WHERE id = {number}"),
        )
