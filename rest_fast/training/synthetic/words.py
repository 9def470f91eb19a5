"""Plain English words for random sentences, in three disjoint splits.

Each split covers every viseme. A word and its derived forms never stand in two splits: a model that does well on
`test` has not learned those mouth movements by heart. One line of a list favours one kind of sound.
"""

from __future__ import annotations

SPLITS = ("train", "validation", "test")

_TRAIN = """
mamma pappa baby bob people paper apple happy bumper puppy pepper lamp jump camp pump map moon move mother marble
number member summer family problem market mountain beef beauty bread bridge bubble button cabin captain copper company

father fathom feather fever fifty fish five food forty fox free friend fruit flower office perfume
over oven river silver twelve valley velvet very village violin visit voice vote

window woman wool wolf wood wash water west weather wide wheel quick queen square who whose boot blue choose cool
do pool rule school soup spoon student you june juice two

there think thin thick third thunder thumb thank three throat through truth bath month north smooth health other

shark shell ship shirt shoe shop short shower sugar fashion ocean station measure garage
chair cheese cherry chicken church kitchen lunch teacher touch watch judge orange giant

ask arm calm car dark garden half palm park star yard
always awful daughter door floor fork horse law more sport talk wall warm

cat hand man plan black candle animal land
day game great lake name rain train eight
easy eat green keep leaf meal need sea sleep street tree ear year
bird early first girl nurse purple turn word
boy coin join noise oil point toy
cow down cloud house loud mouse now out town
cold gold home hope nose old open road snow soap stone
bell desk egg left letter lesson seven
city dinner finger kind like little milk nine pencil fire
above sun love money cup young hurry
"""

_VALIDATION = """
bamboo pop moment blossom beaver favour woof swan balloon zoo thirsty theory faith lather shadow journey vision sheriff
harp barn crawl royal crown foam honey jelly gift kangaroo rabbit tiger chess air
"""

_TEST = """
bomb mop pebble maple amber humble plum mob wobble palace basket bicycle poppy mammoth
fabric fuzzy elephant verb vivid cave void gravel
wagon woe wing wombat swamp hoof tulip goose cocoon moose
thorn thistle panther wreath
shoulder shrimp polish cushion treasure champion chimney pigeon jacket
alarm charm farmer drama spa heart
caution hawk lobster sauce
hurt turtle fly cry joy moist scout ghost robe bear net rug yes
"""

WORDS: dict[str, tuple[str, ...]] = {
    "train": tuple(_TRAIN.split()),
    "validation": tuple(_VALIDATION.split()),
    "test": tuple(_TEST.split()),
}
