"""Writes data/*.jsonl: questions made up for this project in the formats of MMLU, C-Eval and MATH (Apache-2.0 like the rest).

They test prompts and scores, not knowledge. Five rows of each multiple-choice set are the few-shot examples (`dev`). The astronomy rows
are written as Parquet too, as the Hub keeps them, in each compression that it uses.
Run: python make-data.py
"""
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

HERE = Path(__file__).parent / "data"

MMLU = {  # subject -> (question, four choices, index of the answer)
    "astronomy": [
        ("Which body of the solar system is a star?", ["The Moon", "The Sun", "Mars", "Halley's comet"], 1),
        ("What causes the phases of the Moon?", ["The shadow of the Earth", "Clouds", "The part of the lit half that we see", "The Moon's own light"], 2),
        ("Which planet has the shortest year?", ["Mercury", "Earth", "Jupiter", "Neptune"], 0),
        ("A light-year is a unit of", ["time", "brightness", "mass", "distance"], 3),
        ("Which of these is a dwarf planet?", ["Venus", "Ceres", "Titan", "Io"], 1),
        ("Which planet is known for a large storm called the Great Red Spot?", ["Mars", "Saturn", "Jupiter", "Uranus"], 2),
        ("What is at the centre of most large galaxies?", ["A supermassive black hole", "A planet", "A comet cloud", "Nothing at all"], 0),
        ("The Earth needs about how long for one orbit of the Sun?", ["One day", "One month", "Ten years", "One year"], 3),
        ("  Which planet's day is longer than its year?  ", ["Venus", "Earth", "Saturn", "Mars"], 0),
        ("Shooting stars are", ["falling stars", "dust burning in the atmosphere", "satellites", "reflections of the Sun"], 1),
        ("Which moon is the largest of the solar system?", ["The Moon", "Phobos", "Ganymede", "Triton"], 2),
        ("Of the following colours, which belongs to the hottest stars?", ["red", "orange", "yellow", "blue"], 3),
        ("What keeps the planets in their orbits?", ["Magnetism", "Gravity", "Friction", "Light"], 1),
        ("A total solar eclipse is seen when", ["the Moon covers the Sun", "the Earth covers the Sun", "the Sun covers the Moon", "Venus covers the Moon"], 0),
        ("The rings of Saturn consist mostly of", ["molten iron", "gas", "ice and rock", "plasma"], 2),
        ("Which instrument splits starlight into its colours?", ["A sextant", "A barometer", "A compass", "A spectrograph"], 3),
        ("Two stars that orbit each other are called", ["a binary", "a nebula", "a cluster of galaxies", "a quasar"], 0),
    ],
    "high_school_mathematics": [
        ("What is 7 times 8?", ["54", "56", "63", "48"], 1),
        ("If $f(x) = 3x - 2$, what is $f(4)$?", ["10", "12", "14", "8"], 0),
        ("The sum of the angles of a triangle in a plane is", ["90 degrees", "360 degrees", "180 degrees", "270 degrees"], 2),
        ("What is the derivative of $x^2$?", ["$x$", "$2$", "$x^3$", "$2x$"], 3),
        ("How many ways are there to order three different books?", ["3", "6", "9", "27"], 1),
        ("Which number is prime?", ["21", "33", "29", "51"], 2),
        ("Solve $2x + 6 = 0$.", ["-3", "3", "-12", "0"], 0),
        ("What is the area of a circle of radius 2?", ["$2\\pi$", "$\\pi$", "$8\\pi$", "$4\\pi$"], 3),
        ("The slope of the line $y = 5 - 2x$ is", ["5", "-2", "2", "-5"], 1),
        ("What is 15% of 200?", ["15", "20", "30", "45"], 2),
        ("$\\log_2 32$ equals", ["5", "4", "16", "6"], 0),
        ("A fair coin is thrown twice. The probability of two heads is", ["1/2", "1/3", "3/4", "1/4"], 3),
        ("What is the greatest common divisor of 12 and 18?", ["3", "6", "36", "2"], 1),
        ("The next number of 1, 1, 2, 3, 5, 8 is", ["11", "12", "13", "16"], 2),
    ],
}

CEVAL = {  # subject -> (question, four choices, letter)
    "logic": [
        ("“所有的猫都是动物”与“有的猫不是动物”之间是____", ["矛盾关系", "等值关系", "下反对关系", "从属关系"], "A"),
        ("如果下雨，地就湿。地没有湿。因此____", ["下雨了", "没有下雨", "可能下雨", "无法判断"], "B"),
        ("概念的两个基本特征是____", ["真与假", "长与短", "内涵与外延", "主与次"], "C"),
        ("“或者甲来，或者乙来；甲没有来，所以乙来了”是____", ["归纳推理", "类比推理", "假言推理", "选言推理"], "D"),
        ("从个别到一般的推理叫做____", ["归纳推理", "演绎推理", "类比推理", "直接推理"], "A"),
        ("下列判断中，全称肯定判断是____", ["有的鸟会飞", "所有鸟都有羽毛", "有的鱼不吃草", "没有鱼会说话"], "B"),
        ("“三角形”与“等边三角形”之间的关系是____", ["全同关系", "交叉关系", "属种关系", "全异关系"], "C"),
        ("同一律要求在同一思维过程中____", ["不能自相矛盾", "必须二者择一", "要有充足理由", "概念保持同一"], "D"),
        ("“这个数是偶数”与“这个数是奇数”（就整数而言）不能____", ["同真", "同时被提出", "被验证", "被书写"], "A"),
        ("下列哪一项是定义的规则？", ["定义可以循环", "定义项与被定义项外延相等", "定义应当用比喻", "定义必须否定"], "B"),
        ("“只有年满十八岁，才有选举权”是____", ["充分条件判断", "联言判断", "必要条件判断", "选言判断"], "C"),
        ("三段论中，小前提包含____", ["大项和中项", "大项和小项", "只有中项", "小项和中项"], "D"),
        ("一个推理形式有效，且前提真，则结论____", ["必真", "必假", "可真可假", "无意义"], "A"),
        ("“并非所有人都喜欢音乐”等值于____", ["所有人都不喜欢音乐", "有的人不喜欢音乐", "有的人喜欢音乐", "没有人喜欢音乐"], "B"),
        ("把“学校”分为“小学、中学和大学”属于____", ["定义", "限制", "划分", "概括"], "C"),
        ("违反不矛盾律的错误叫做____", ["偷换概念", "模棱两可", "以偏概全", "自相矛盾"], "D"),
    ],
    "middle_school_geography": [
        ("地球自转一周大约需要____", ["24小时", "12小时", "一个月", "一年"], "A"),
        ("世界上面积最大的大洋是____", ["大西洋", "太平洋", "印度洋", "北冰洋"], "B"),
        ("赤道的纬度是____", ["90度", "45度", "0度", "180度"], "C"),
        ("下列国家中，位于南半球的是____", ["加拿大", "法国", "日本", "新西兰"], "D"),
        ("长江注入____", ["东海", "南海", "黄海", "渤海"], "A"),
        ("地图上一般用什么颜色表示海洋？", ["绿色", "蓝色", "黄色", "棕色"], "B"),
        ("四季变化的主要原因是____", ["地球自转", "月球引力", "地球公转和地轴倾斜", "太阳活动"], "C"),
        ("下列大洲中，面积最大的是____", ["非洲", "欧洲", "南极洲", "亚洲"], "D"),
        ("等高线密集的地方表示____", ["坡度陡", "坡度缓", "平原", "湖泊"], "A"),
        ("热带雨林气候的特点是____", ["全年干燥", "全年高温多雨", "冬冷夏热", "全年寒冷"], "B"),
        ("世界上最高的山峰是____", ["富士山", "泰山", "珠穆朗玛峰", "勃朗峰"], "C"),
        ("撒哈拉沙漠位于____", ["亚洲", "南美洲", "大洋洲", "非洲"], "D"),
        ("经线连接的是____", ["南北两极", "东西两端", "赤道与回归线", "两个大洋"], "A"),
        ("一幅地图的比例尺为1:100000，图上1厘米代表实地____", ["100米", "1千米", "10千米", "100千米"], "B"),
    ],
}

MATH = [  # (problem, solution)
    ("What is the value of $3x+4$ when $x=5$?", "Putting $x=5$ gives $3\\cdot 5+4=15+4=\\boxed{19}$."),
    ("Solve for $y$: $2y-7=9$.", "Adding $7$ gives $2y=16$, so $y=\\boxed{8}$."),
    ("Simplify $\\frac{6}{8}$.", "Both are divisible by $2$: $\\frac{6}{8}=\\boxed{\\frac{3}{4}}$."),
    ("If $a+b=10$ and $a-b=4$, what is $a$?", "Adding the equations, $2a=14$, hence $a=\\boxed{7}$."),
    ("What is the positive root of $x^2-5x-14=0$?", "We factor $(x-7)(x+2)=0$; the positive root is $\\boxed{7}$."),
    ("Evaluate $\\sqrt{49}+\\sqrt{16}$.", "This is $7+4=\\boxed{11}$."),
    ("Expand $(x+2)(x+3)$.", "We get $x^2+3x+2x+6=\\boxed{x^2+5x+6}$."),
    ("What is the slope of the line through $(1,2)$ and $(3,8)$?", "The slope is $\\frac{8-2}{3-1}=\\frac{6}{2}=\\boxed{3}$."),
    ("Ten pens cost 15 dollars. How many dollars do four pens cost?", "One pen costs $1.5$ dollars, so four cost $\\boxed{6}$ dollars."),
    ("Compute $2^{5}-2^{3}$.", "We have $32-8=\\boxed{24}$."),
    ("For which $k$ does $x^2+kx+9$ have a double root with $k>0$?", "The discriminant $k^2-36$ must be $0$, so $k=\\boxed{6}$."),
    ("Write $0.125$ as a fraction in lowest terms.", "$0.125=\\frac{125}{1000}=\\boxed{\\frac18}$."),
    ("What is $f(f(2))$ if $f(x)=x^2-1$?", "$f(2)=3$ and $f(3)=\\boxed{8}$."),
    ("The average of $4$, $9$ and $n$ is $8$. Find $n$.", "The sum is $24$, hence $n=24-13=\\boxed{11}$."),
    ("Solve $|x-3|=5$ for the smaller solution.", "Either $x=8$ or $x=-2$; the smaller is $\\boxed{-2}$."),
    ("How many integers satisfy $-2<x\\le 3$?", "They are $-1,0,1,2,3$: $\\boxed{5}$."),
    ("What is $\\frac{1}{2}+\\frac{1}{3}$?", "The sum is $\\frac{3}{6}+\\frac{2}{6}=\\boxed{\\frac{5}{6}}$."),
    ("A sequence starts with $2$ and each term is three times the one before. What is the fourth term?", "The terms are $2,6,18,\\boxed{54}$."),
    ("Give the solution set of $x^2<4$ as an interval.", "We need $-2<x<2$, that is $\\boxed{(-2,2)}$."),
    ("If $10\\%$ of $m$ is $12$, what is $m$?", "Then $m=12\\cdot 10=\\boxed{120}$."),
]


def write(name: str, rows: list[dict]) -> None:
    (HERE / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_parquet(name: str, rows: list[dict], compression: str) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), HERE / name, compression=compression, row_group_size=5)


def main() -> None:
    for subject, rows in MMLU.items():
        docs = [dict(question=q, subject=subject, choices=c, answer=a) for q, c, a in rows]
        write(f"mmlu-{subject}-dev.jsonl", docs[:5])
        write(f"mmlu-{subject}-test.jsonl", docs[5:])
        for compression in ["none", "snappy", "gzip", "zstd"] if subject == "astronomy" else []:
            write_parquet(f"mmlu-{subject}-test-{compression}.parquet", docs[5:], compression)
    for subject, rows in CEVAL.items():
        docs = [dict(id=i, question=q, **dict(zip("ABCD", c)), answer=a, explanation="") for i, (q, c, a) in enumerate(rows)]
        write(f"ceval-{subject}-dev.jsonl", docs[:5])
        write(f"ceval-{subject}-val.jsonl", docs[5:])
    write("math-algebra-test.jsonl", [dict(problem=p, level="Level 1", type="Algebra", solution=s) for p, s in MATH])


main()
