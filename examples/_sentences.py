"""Plain sentences: some to calibrate on, others to judge by."""

CALIBRATION = """
The ferry to the island leaves every morning at half past eight.
She repaired the old bicycle with parts from the market.
Interest rates rose again, and the bank tightened its lending rules.
A gentle rain fell over the vineyards during the night.
The committee rejected the proposal after a long and heated debate.
Photosynthesis turns sunlight, water and carbon dioxide into sugar.
He forgot his passport and had to rebook the flight.
The recipe calls for two cups of flour and a pinch of salt.
Engineers tested the bridge with trucks full of sand.
Our cat sleeps on the keyboard whenever I try to work.
The museum opened a new wing devoted to modern sculpture.
Scientists discovered water ice in the shadow of a lunar crater.
The defendant denied all charges and asked for a new lawyer.
Children learn languages faster when they hear them every day.
The stock fell nine percent after the company cut its forecast.
He plays the cello in a small orchestra on weekends.
A broken sensor caused the train to stop in the tunnel.
The novel tells the story of three sisters who inherit a lighthouse.
Doctors recommend at least seven hours of sleep for adults.
The old oak behind the school was struck by lightning.
You can return the shoes within thirty days with the receipt.
The compiler reports an error when a variable is never used.
Farmers worry that the drought will ruin the wheat harvest.
The goalkeeper saved two penalties and became the hero of the evening.
Please send me the signed contract before Friday afternoon.
Volcanic ash closed the airport for almost a week.
The bakery on the corner sells the best rye bread in town.
A new vaccine protects against the most common strains of the virus.
They hiked along the ridge until the fog came in.
The phone's battery lasts two days if you turn off the radio.
Her lecture explained how glaciers carve valleys.
The minister resigned over a scandal about public contracts.
Add the onions first, then the garlic, and stir until golden.
The library lends musical instruments as well as books.
A pair of storks has been nesting on the chimney since April.
The court ruled that the patent was not valid.
We painted the kitchen yellow because it faces north.
Quantum computers are very sensitive to heat and noise.
The bus was late, so I missed the first act of the play.
Prices for used cars have dropped since last winter.
He taught himself to write programs on a borrowed laptop.
The river flooded the lower part of the village twice this year.
A small leak in the pipe caused damage worth thousands.
The orchestra tuned while the audience found their seats.
Bees find their way back to the hive by the position of the sun.
The bank offers a loan without fees for first-time buyers.
She ran the marathon in just under four hours.
The archaeologists found coins from the second century.
Our neighbor grows tomatoes and basil on his balcony.
The film was praised for its quiet, patient storytelling.
Turn left at the fountain and walk down to the harbor.
The city plans to plant ten thousand trees by next spring.
An apple falls because the earth pulls it down.
The teacher asked the class to write about their summer.
Inflation makes savings worth less every year.
The dog barked at the postman but wagged its tail.
The satellite sends weather pictures every fifteen minutes.
He apologized for the delay and offered a free dessert.
The factory makes gearboxes for wind turbines.
Astronomers measured how fast the galaxy is spinning.
The hotel room had a view of the mountains and a noisy heater.
She wrote her thesis about trade in the ancient Mediterranean.
The printer is out of paper again.
Voters will decide on the new tax in November.
""".strip().splitlines()

EVALUATION = """
The night train to Vienna has comfortable sleeping cars.
My grandmother knits sweaters for everyone in the family.
The central bank left its key rate unchanged on Thursday.
Heavy snow blocked the road over the mountain pass.
The senator voted against the bill and explained why.
Plants bend toward the light as they grow.
I lost my wallet somewhere between the office and the station.
Melt the butter and fold it into the beaten eggs.
The tunnel was inspected after small cracks appeared.
A kitten was rescued from the roof by the fire brigade.
The gallery shows drawings by students of the academy.
A probe landed on the asteroid and collected dust.
The jury needed only two hours to reach a verdict.
Reading aloud helps children to build a large vocabulary.
Shares of the airline gained after it reported record profits.
They danced to the sound of an accordion until midnight.
A software update fixed the fault in the braking system.
In the play, a retired captain writes letters to his daughter.
Drinking enough water is important in hot weather.
The storm tore the roof off the old barn.
The warranty covers repairs for a period of two years.
The program crashed because the file was empty.
Olive growers expect a poor harvest after the dry summer.
The striker scored in the last minute of extra time.
Could you forward me the minutes of yesterday's meeting?
The earthquake was felt in three countries.
This little restaurant serves homemade noodles and dumplings.
Washing your hands often prevents many infections.
We watched the sunrise from the top of the dunes.
The camera takes sharp pictures even when there is little light.
The treaty ended a war that had lasted thirty years.
A swarm of bees settled on the traffic light.
""".strip().splitlines()
