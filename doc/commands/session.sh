# The worked examples of the commands: see doc/extensions/session.py.

#: digits
dipy_generate_ldm mnist --n_samples 40 --out_samples digits

#: seed
dipy_generate_ldm mnist --n_samples 40 --steps 5 --seed 7 --out_samples five

#: refused
dipy_generate_ldm mnist --n_samples 40 --out_samples digits || echo "status $?"

#: cohort
python doc/examples/virtual_cohort.py cohort --n 40 --covariates
head -n 3 cohort/participants.tsv

#: check
dipy_check_ldm cohort --voxel_size 8 --widths_vqvae 16 32 --widths_ldm 32 64 \
    --n_codes 256

#: faults
mkdir faults
cp cohort/*.nii.gz faults
cp faults/sub-0004_T1w.nii.gz faults/sub-9004_T1w.nii.gz
head -c 20000 cohort/sub-0005_T1w.nii.gz > faults/sub-0005_T1w.nii.gz
python -c "import nibabel as nib, numpy as np
names = 'faults/sub-0006_T1w.nii.gz', 'faults/sub-0007_T1w.nii.gz'
scan, other = map(nib.load, names)
mirrored = scan.get_fdata(dtype='float32')[::-1, ::-1, ::-1]
nib.save(nib.Nifti1Image(mirrored, scan.affine), names[0])
metres = np.diag([.001, .001, .001, 1]) @ other.affine
nib.save(nib.Nifti1Image(other.get_fdata(dtype='float32'), metres), names[1])"
dipy_check_ldm faults --voxel_size 8 --seconds 0 --out_dir faults-checked \
    || echo "status $?"

#: train
dipy_train_ldm cohort --conditions ventricles,group --coarsen ventricles=2 \
    --voxel_size 8 --epochs_vqvae 40 --epochs_ldm 60 \
    --n_codes 256 --widths_vqvae 16 32 --widths_ldm 32 64 --out_dir brains
ls brains

#: history
cut -d, -f 1-6 brains/history.csv | head -n 3

#: few
dipy_train_ldm cohort --batch_size 64 --out_dir refused || echo "status $?"

#: generate
dipy_generate_ldm brains/ldm.safetensors --n_samples 2 --seed 3 --out_dir brains
cat brains/samples-0000.json

#: table
printf 'ventricles\tgroup\n12\tcontrol\nn/a\tpatient\n' > wanted.tsv
dipy_generate_ldm brains/ldm.safetensors --table wanted.tsv --bids \
    --skull_stripped --out_dir synthetic
find synthetic -name "*.nii.gz"
cat synthetic/participants.tsv

#: denoise
python doc/examples/virtual_cohort.py others --n 1 --first 1000
dipy_denoise_ldm brains/ldm.safetensors others/sub-1000_T1w.nii.gz --strength 0.2 \
    --repeats 2 --out_dir denoised
ls denoised

#: inpaint
python -c "import nibabel as nib, numpy as np
scan = nib.load('others/sub-1000_T1w.nii.gz')
box = np.zeros(scan.shape, 'uint8')
box[tuple(slice(n // 2, n // 2 + 6) for n in scan.shape)] = 1
nib.save(nib.Nifti1Image(box, scan.affine), 'box.nii.gz')"
dipy_inpaint_ldm brains/ldm.safetensors others/sub-1000_T1w.nii.gz \
    --mask_files box.nii.gz --dilate 2 --n_samples 2 --out_dir inpainted
ls inpainted

#: evaluate
dipy_evaluate_ldm mnist --real mnist --n_samples 100

#: audit
python doc/examples/virtual_cohort.py held --n 24 --first 2000
dipy_generate_ldm brains/ldm.safetensors --n_samples 22 --out_samples made/sample
cp cohort/sub-0003_T1w.nii.gz cohort/sub-0007_T1w.nii.gz made
dipy_audit_ldm brains/ldm.safetensors --train cohort --held_out held --generated made \
    || echo "status $?"
