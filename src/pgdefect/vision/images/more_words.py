"""The vocabulary of folders in other languages than English, without accents, in lower case."""

from __future__ import annotations

__all__ = ["ANOMALOUS", "DEFECTS", "NORMAL", "NOT", "THINGS", "words"]


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


NORMAL = words(
    "gutteil gutteile guter gute gutes fehlerfrei einwandfrei bon bons bonne bonnes conforme "
    "conformes bueno buenos buena buenas buono buoni buona buone bom goed goede sain sains "
    "dobre dobry saglam godnye норма нормальные годные годен "
    "正常 良品 良好 合格 合格品 好品 好 良 无缺陷 無缺陷 정상 양품 합격"
)
ANOMALOUS = words(
    "schlecht schlechte schlechter schlechtteil schlechtteile ausschuss fehlerhaft defekt defekte "
    "fehler mauvais mauvaise mauvaises defectueux defaut defauts rebut malo malos mala malas "
    "defecto defectos defectuoso defectuosos defectuosa difetto difetti difettoso difettosi "
    "scarto scarti cattivo cattivi defeito defeitos defeituoso ruim fout afgekeurd zle wadliwe "
    "hatali брак дефект дефекты "
    "异常 異常 不良 不良品 缺陷 不合格 不合格品 次品 瑕疵 残次品 欠陥 불량 불량품 이상 결함"
)
DEFECTS = words(
    "kratzer riss risse bruch delle dellen fleck flecken loch rayure rayures fissure fissures "
    "rasguno rasgunos grieta grietas graffio graffi crepa "
    "划痕 裂纹 划伤 污渍 傷 汚れ 스크래치"
)
NOT = words("nicht kein keine ohne sans sin senza sem niet geen не")
THINGS = words("teil teile bauteil bauteile piece pieces pieza piezas pezzo pezzi peca")
"""Words that change nothing of what the others say: parts."""
