"""Photos brought to one size: no pixel is invented, boxes are checked, colours are read as meant."""
import io
import json

import numpy as np
import pytest
from conftest import plain
from PIL import Image, ImageCms

from hgdpo_curate import UserError, create_workspace, import_photos
from hgdpo_curate.images.decode import fit_counts, fit_photo, fit_window, lost_parts, pad_window, read_photo

PERSON = (30, 60, 200)


def portrait(size=(110, 166), box=(20, 6, 90, 160)): # a person in one colour on a striped ground
    a = np.zeros((size[1], size[0], 3), np.uint8) + np.array([220, 200, 180], np.uint8)
    a[::7] = 90
    a[box[1]:box[3], box[0]:box[2]] = PERSON
    return Image.fromarray(a)


def folder_of(tmp_path, pictures, **facts):
    "A folder of photos: name -> picture or bytes; facts of each by its name."
    folder = tmp_path/'photos'
    folder.mkdir(exist_ok=True)
    rows = []
    for name, im in pictures.items():
        if isinstance(im, bytes): (folder/name).write_bytes(im)
        else: im.save(folder/name)
        rows.append(dict(file_name=name, text=f'person {name}') | facts.get(name.split('.')[0], {}))
    (folder/'metadata.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return folder


def as_png(im, **options):
    out = io.BytesIO()
    im.save(out, 'PNG', **options)
    return out.getvalue()


@pytest.mark.parametrize('box', (None, [20, 6, 90, 160], [0, 0, 30, 40], [80, 100, 110, 166]))
@pytest.mark.parametrize('size', ((64, 64), (64, 96), (96, 64), (40, 56)))
def test_a_window_lies_inside_the_photo_and_holds_the_person_where_its_shape_allows(size, box):
    rng = np.random.default_rng(0)
    for width, height in [(110, 166), (300, 100), (64, 64), *rng.integers(111, 900, (40, 2)).tolist()]:
        if box and (box[2] > width or box[3] > height): continue
        l, t, r, b = fit_window(width, height, size, box)
        assert l >= -1e-6 and t >= -1e-6 and r <= width + 1e-6 and b <= height + 1e-6
        assert abs((r - l)/(b - t) - size[0]/size[1]) < 1e-6
        if not box: continue
        if box[2] - box[0] <= r - l: assert l <= box[0] + 1e-6 and r >= box[2] - 1e-6
        if box[3] - box[1] <= b - t: assert t <= box[1] + 1e-6 and b >= box[3] - 1e-6
        else: assert t <= box[1]                                       # what cannot be kept is never the head
        pl, pt, pr, pb = pad_window(width, height, size, box)
        assert pl <= box[0] and pt <= box[1] and pr >= box[2] and pb >= box[3]


def test_a_photo_of_the_right_size_is_not_touched():
    im = portrait((64, 96), (10, 4, 50, 90))
    for way in ('crop', 'pad', 'leave_out'):
        fitted, window = fit_photo(im, (64, 96), [10, 4, 50, 90], way)
        assert fitted.tobytes() == im.tobytes() and window == [0, 0, 64, 96]


def test_no_pixel_is_invented_and_what_is_lost_is_told_with_what_would_keep_it(tmp_path):
    box = [20, 6, 90, 160]
    pictures = {f'{n}.png': portrait() for n in range(3)}
    for n, im in enumerate(pictures.values()): im.putpixel((0, 165), (n, n, n))
    pictures['nobody.png'] = portrait(box=(40, 40, 60, 60))
    folder = folder_of(tmp_path, pictures, **{str(n): dict(person_box=box) for n in range(3)})
    ws = create_workspace(tmp_path/'ws', resolution='64')
    report = import_photos(ws, folder, progress=plain)
    words = str(report)
    assert 'Of 4 photos 3 lose part of the person: 3 the feet' in words and '1 without a person box lose' in words
    assert '--resolution 64x96 would keep all' in words and '--fit pad' in words and '--fit leave_out' in words
    assert report.fit.sheet == ws.root/'fit.png' and str(report.fit.sheet) in words
    assert report._repr_html_().count('data:image/png;base64,') == 1
    for row in ws.table('photo_facts').itertuples():
        l, t, r, b = row.fit
        assert 0 <= l < r <= 110 and 0 <= t < b <= 166
        if row.box: assert t < 6 and lost_parts(row.fit, (110, 166), row.box).keys() == {'bottom'}
    # told once, held to
    whole = create_workspace(tmp_path/'whole', resolution='64x96')
    report = import_photos(whole, folder, progress=plain)
    assert not report.fit.lost and 'lose' not in str(report) and not (whole.root/'fit.png').exists()


def test_a_photo_that_does_not_fit_can_be_padded_or_left_out(tmp_path):
    fits = portrait((110, 110), (20, 6, 90, 100))
    folder = folder_of(tmp_path, {'tall.png': portrait(), 'square.png': fits},
                       tall=dict(person_box=[20, 6, 90, 160]), square=dict(person_box=[20, 6, 90, 100]))
    ws = create_workspace(tmp_path/'padded', resolution='64')
    report = import_photos(ws, folder, fit='pad', progress=plain)
    assert '1 would lose part of the person' in str(report) and 'padded with plain gray' in str(report)
    facts = ws.table('photo_facts').set_index('photo_height')
    pad, crop = facts.loc[166], facts.loc[110]
    assert pad.fit[0] < 0 and pad.fit[2] > 110 and crop.fit == [0, 0, 110, 110]
    pixels = np.asarray(ws.open_image(ws.table('images').set_index('image_id').path[pad.image_id]))
    assert (pixels[:, 0] == 128).all() and (pixels[:, -1] == 128).all()         # one plain colour, no smeared edge
    counts = {k: n for k, n in fit_counts(ws.table('photo_facts')).items() if n}
    assert ws.config['fit'] == 'pad' and counts == dict(photos=2, padded=1)
    import_photos(ws, folder_of(tmp_path, {'again.png': portrait(box=(30, 6, 90, 160))},
                                again=dict(person_box=[30, 6, 90, 160])), progress=plain)
    assert (ws.table('photo_facts').set_index('box').fit.map(lambda w: w[0] < 0)).sum() == 2   # the workspace's way
    folder = folder_of(tmp_path, {'tall.png': portrait(), 'square.png': fits},
                       tall=dict(person_box=[20, 6, 90, 160]), square=dict(person_box=[20, 6, 90, 100]))
    out = create_workspace(tmp_path/'out', resolution='64')
    report = import_photos(out, folder, fit='leave_out', progress=plain)
    assert report.imported == 1 and len(report.refused) == 1 and 'tall.png does not fit' in report.refused[0]
    (folder/'copy.png').write_bytes((folder/'tall.png').read_bytes())
    rows = (folder/'metadata.jsonl').read_text()
    (folder/'metadata.jsonl').write_text(rows + '\n' + rows.splitlines()[0].replace('tall.png', 'copy.png'))
    assert len(import_photos(out, folder, progress=plain).refused) == 2
    with pytest.raises(UserError, match='crop, pad, leave_out'): import_photos(out, folder, fit='squeeze')


def test_forget_takes_the_contact_sheet_along(tmp_path):
    from hgdpo_curate import forget
    folder = folder_of(tmp_path, {f'{n}.png': portrait(box=(20 + n, 6, 90, 160)) for n in range(3)})
    ws = create_workspace(tmp_path/'ws', resolution='64')
    import_photos(ws, folder, progress=plain)
    assert (ws.root/'fit.png').exists()
    forget(ws, ws.table('images').image_id[0], app=False, progress=lambda total, label: lambda n: None)
    assert not (ws.root/'fit.png').exists()


def test_people_of_street_are_cut_nowhere_at_a_resolution_of_their_shape(test_data):
    street = test_data/'photos'/'street'
    lost = 0
    for line in (street/'metadata.jsonl').read_text().splitlines()[:300]:
        r = json.loads(line)
        with Image.open(street/r['file_name']) as im: size = im.size
        for want in ((512, 512), (512, 768)):
            l, t, right, b = fit_window(*size, want, r['person_box'])
            assert l >= 0 and t >= 0 and right <= size[0] + 1e-6 and b <= size[1] + 1e-6
            assert t <= r['person_box'][1] + .01*size[1], r['file_name']                 # no head is cut
        lost += bool(lost_parts([l, t, right, b], size, r['person_box']))
    assert lost <= 3


BAD_BOXES = dict(
    relative=([.667, .25, .833, .95], '0 to 1'),
    fiftyone=([.1, .1, .2, .7], '0 to 1'),
    percent=([66.7, 25, 83.3, 95], 'percent'),
    outside=([5000, 5000, 6000, 6000], 'outside'),
    partly_outside=([300, 200, 700, 1000], 'outside'),
    another_size=([600, 100, 900, 1600], 'outside'),
    coco=([300, 100, 150, 700], r'write \[300, 100, 450, 800\]'),
    a_line=([100, 100, 101, 600], 'less than two pixels'),
    nothing=([100, 100, 100, 600], r'left, top, right'),
)


@pytest.mark.parametrize('name', BAD_BOXES)
def test_a_box_that_is_not_in_pixels_of_the_picture_is_refused_by_name(tmp_path, name):
    box, word = BAD_BOXES[name]
    folder = folder_of(tmp_path, {'good.png': portrait(), 'bad.png': Image.new('RGB', (600, 900), 'red')},
                       good=dict(person_box=[20, 6, 90, 160]), bad=dict(person_box=box))
    ws = create_workspace(tmp_path/'ws', resolution='64')
    with pytest.raises(UserError, match=f'bad.png.*{word}'): import_photos(ws, folder, progress=plain)
    assert not len(ws.table('images')) and not [*ws.root.rglob('*.png')]


def test_a_box_is_held_against_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    def turned(person_box): # stored 900 x 600, upright 600 x 900
        out = io.BytesIO()
        Image.new('RGB', (900, 600), 'red').save(out, 'JPEG', exif=exif)
        return folder_of(tmp_path, {'turned.jpg': out.getvalue()}, turned=dict(person_box=person_box))
    ws = create_workspace(tmp_path/'ws', resolution='64')
    with pytest.raises(UserError, match='turned.jpg.*stored.*900x600.*EXIF.*600x900'):
        import_photos(ws, turned([50, 100, 860, 500]), progress=plain)
    report = import_photos(ws, turned([100, 50, 500, 860]), progress=plain)
    assert report.turned == 1 and 'upright' in str(report)
    # a detector may reach a little past the edge
    small = folder_of(tmp_path, {'edge.png': portrait()}, edge=dict(person_box=[-1, 6, 90, 167.5]))
    import_photos(ws, small, progress=plain)
    assert [0, 6, 90, 166] in ws.table('photo_facts').box.tolist()


def swapped_profile(): # sRGB whose red and green primaries changed places: nobody can miss it
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes())
    red, green = profile.index(b'rXYZ'), profile.index(b'gXYZ')
    profile[red + 4:red + 12], profile[green + 4:green + 12] = profile[green + 4:green + 12], profile[red + 4:red + 12]
    return bytes(profile)


def test_an_embedded_profile_counts_in_every_mode(tmp_path):
    profile, red = swapped_profile(), Image.new('RGB', (8, 8), (230, 60, 40))
    half = red.convert('RGBA')
    half.putalpha(128)
    palette_with_hole = red.convert('P', palette=Image.Palette.ADAPTIVE)
    files = dict(
        rgb='png',
        rgba='png',
        palette='png',
        clear_palette='png',
        webp='webp',
        clear_webp='webp',
        tiff='tif',
        jpeg='jpg',
    )
    pictures = dict(
        rgb=red,
        rgba=red.convert('RGBA'),
        palette=red.convert('P', palette=Image.Palette.ADAPTIVE),
        clear_palette=palette_with_hole,
        webp=red,
        clear_webp=red.convert('RGBA'),
        tiff=red,
        jpeg=red,
    )
    got = {}
    for name, im in pictures.items():
        file = tmp_path/f'{name}.{files[name]}'
        more = dict(lossless=True) if file.suffix == '.webp' else dict(quality=100) if file.suffix == '.jpg' else {}
        if name == 'clear_palette': more = dict(transparency=255)
        im.save(file, icc_profile=profile, **more)
        got[name] = read_photo(file)[0].getpixel((4, 4))
    expected = got['rgb']
    assert expected[1] > 200 and expected[0] < 100                              # red has become green
    for name, pixel in got.items(): assert max(abs(a - b) for a, b in zip(pixel, expected)) <= 3, (name, got)
    # transparency is put on white after the colours were read
    half.save(tmp_path/'half.png', icc_profile=profile)
    mixed = read_photo(tmp_path/'half.png')[0].getpixel((4, 4))
    assert max(abs(m - (p + 255)/2) for m, p in zip(mixed, expected)) <= 3
    # a profile for gray in a colour picture, and rubbish, change nothing
    red.save(tmp_path/'rubbish.png', icc_profile=b'rubbish')
    assert read_photo(tmp_path/'rubbish.png')[0].getpixel((4, 4)) == (230, 60, 40)


def test_pictures_of_more_than_eight_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 1, 80*112).reshape(112, 80)
    pictures = dict(
        ten=(ramp*1023).astype(np.uint16),
        twelve=(ramp*4095).astype(np.uint16),
        sixteen=(ramp*65535).astype(np.uint16),
        unit=ramp.astype(np.float32),
        signed=(ramp*2 - 1).astype(np.float32),
        bytes=(ramp*255).astype(np.float32),
        bright=(ramp*1.2).astype(np.float32),
        brighter=(ramp*40).astype(np.float32),
        whole=(ramp*65535).astype(np.int32),
    )
    pictures['holes'] = pictures['unit'].copy()
    pictures['holes'][0, :3] = np.nan, np.inf, -np.inf
    for name, numbers in pictures.items():
        file = tmp_path/f'{name}.{"png" if numbers.dtype == np.uint16 else "tif"}'
        Image.fromarray(numbers).save(file)
        pixels = np.asarray(read_photo(file)[0]).astype(float)
        assert abs(pixels.mean() - 127) < 3 and pixels.max() > 250 and pixels.min() < 3, (name, pixels.mean())
    dark = tmp_path/'dark.png'
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(dark)
    assert read_photo(dark)[0].getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize('packed', (False, True))
def test_a_png_with_megabytes_of_text_is_a_picture(tmp_path, packed):
    from PIL.PngImagePlugin import PngInfo
    texts, im = PngInfo(), portrait()
    for n in range(8): texts.add_text(f'workflow {n}', 'x'*(2**24 if packed else 2**20), zip=packed)
    texts.add_itxt('parameters', 'y'*2**22, zip=packed)
    (tmp_path/'a.png').write_bytes(as_png(im, pnginfo=texts))
    assert read_photo(tmp_path/'a.png')[0].tobytes() == im.tobytes()
    assert read_photo('inside.png', (tmp_path/'a.png').read_bytes())[0].tobytes() == im.tobytes()
