"""The everyday words from which training sentences are built."""

from __future__ import annotations


def _words(block: str) -> list[str]:
    return block.split()


NAMES = _words("""
Anna Ben Clara David Emma Frank Grace Henry Irene Jack Kate Leo Maria Nina Oscar Paul Rose Sam Tom Vera
Alice Bob Carol Daniel Ellen George Helen James Laura Mark Nancy Peter Rachel Simon Susan Victor Wendy Lucy Max
London Paris Rome Berlin Boston Chicago Madrid Vienna Dublin Oslo""")

NOUNS = _words("""
house car dog cat tree book table chair door window garden river mountain city village street road bridge
train boat ship plane bicycle school teacher student doctor nurse farmer baker driver singer painter writer king queen
child children man woman people friend neighbor brother sister mother father family baby bird fish horse cow sheep
apple orange bread butter cheese milk water coffee tea sugar salt soup dinner breakfast lunch kitchen bedroom letter
story song picture music movie game ball clock phone computer camera lamp key box bag cup plate glass spoon knife
hat coat shirt shoe dress ring watch mirror bed blanket pillow flower grass leaf stone sand snow rain wind cloud sun
moon star sky sea lake island forest field hill farm market shop store bank office church hospital hotel station
airport museum library park corner wall roof floor room stairs fire smoke paper pencil pen machine engine wheel
number question answer problem idea plan reason lesson word sentence language voice sound noise color shape size
money price ticket gift party holiday morning evening night week month year minute hour moment summer winter spring
autumn weather storm world country town place side end beginning line point hand foot head face eye ear nose mouth
heart arm leg finger tooth dream secret mistake chance change news test job team player captain soldier guard""")

ADJECTIVES = _words("""big small old new young long short tall high low good bad happy sad hot cold warm cool fast slow
quick quiet loud bright dark light heavy soft hard clean dirty dry wet easy difficult simple strange beautiful
pretty ugly rich poor strong weak brave kind gentle angry tired hungry thirsty busy free full empty open early late
red blue green yellow white black brown gray golden silver wooden wide narrow deep round sharp smooth rough sweet
bitter fresh broken lost hidden famous important little huge tiny wonderful terrible nice fine great lovely clever
funny serious careful ready sure wrong right true real local modern ancient public private special common""")

PAST_VERBS = _words("""
saw took found made gave bought sold brought carried opened closed moved watched heard liked loved
wanted needed used lost kept left painted cleaned washed fixed broke built drew wrote read followed visited
remembered forgot counted touched pushed pulled dropped lifted cut held passed showed sent received called helped
met asked answered taught caught threw hid ate cooked tasted ordered chose shared borrowed returned tried missed
studied explained described noticed answered finished started stopped changed covered filled""")

BASE_VERBS = _words("""see take find make give buy sell bring carry open close move watch hear like want need use keep
leave paint clean wash fix break build draw write read follow visit remember forget count touch push pull drop lift
cut hold show send call help meet ask answer teach catch throw hide eat cook taste order choose share borrow return
try miss study explain describe notice finish start stop change cover fill""")

MOTION = _words("""went walked ran came drove sailed climbed moved traveled hurried returned jumped flew rode marched
wandered looked pointed turned""")

PREPOSITIONS = _words("""
in on under over near behind beside across through around above below inside outside past toward
from to at by with without before after between against along""")

ADVERBS = _words("""
quickly slowly quietly loudly carefully suddenly finally always never often sometimes usually already
soon again together alone today tomorrow yesterday tonight now then here there almost nearly really very quite only
maybe perhaps probably certainly gently badly well early late outside inside everywhere""")

PHRASES = """Hello.|Hello there.|Good morning.|Good evening.|Good night.|Goodbye.|Thank you.|Thank you very much.
You are welcome.|Please.|Excuse me.|I am sorry.|Yes.|No.|Maybe.|Of course.|Not yet.|Not today.|Well done!|Come in.
Sit down.|Stand up.|Wait a minute.|Look at this.|Listen to me.|Be careful!|Watch out!|Hurry up!|Let's go.|Stop!
How are you?|How are you today?|I am fine, thank you.|What is your name?|Where are you going?|What time is it?
Who is there?|Why not?|What happened?|Are you ready?|Is that so?|Do you understand?|Can you hear me?|I see.
That is right.|That is wrong.|That is great!|What a nice day!|How wonderful!|See you tomorrow.|See you soon.
Nice to meet you.|Have a nice day.|Take care.|Happy birthday!|Congratulations!|I do not know.|I think so.|I hope so.
Never mind.|No problem.|All right.|Very good.|Hello world.|This is a test.|Welcome back.|Ready when you are.
The quick brown fox jumps over the lazy dog.|One moment, please.|Once upon a time.|Say it again, please."""

MONTHS = _words("""January February March April May June July August September October November December""")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
